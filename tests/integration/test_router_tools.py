"""Tools through the router, by the ``openai`` and ``ollama`` packages, on release 6751.

Releases since 11434 leave tools out of the prompt where the model's chat template has no place for them, as
that of SmolLM2; 6751 tells the model of them all the same. So this needs another pin.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from harness.release_proof.local import local_build
from tests.integration.router_stack import ROUTER_KEY, RouterStack

pytestmark = [pytest.mark.integration, pytest.mark.long]

EVERY_WAY = ["tiny", "smollm2"]
"""A llama-server of the pool, and the coordinator."""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def stack(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterStack]:
    stack = RouterStack(local_build(6751), smollm2, tmp_path_factory.mktemp("tools"))
    yield stack
    stack.close()


@pytest.mark.parametrize("model", EVERY_WAY)
def test_openai_tool_is_called(stack: RouterStack, model: str) -> None:
    asked: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": 80,
    }
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=ROUTER_KEY, max_retries=0) as client:
        answer = client.chat.completions.create(**asked)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, "city" in json.loads(call.function.arguments)) == ("get_weather", True)


def test_ollama_tools_go_through(stack: RouterStack) -> None:
    of_ollama = ollama.Client(stack.url, headers={"Authorization": f"Bearer {ROUTER_KEY}"})
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    limit: Any = {"num_predict": 80, "temperature": 0}
    answer = of_ollama.chat("tiny", asked, tools=[WEATHER], options=limit)
    plain = of_ollama.chat("tiny", asked, options=limit)
    assert (answer.prompt_eval_count or 0) > (plain.prompt_eval_count or 0) + 50, "the tool is in the prompt"
    used = [
        *asked,
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "P"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "rain"},
    ]
    assert of_ollama.chat("tiny", used, tools=[WEATHER], options=limit).done
