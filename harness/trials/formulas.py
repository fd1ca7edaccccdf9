"""What each figure in a run means; every run carries this table in ``run.json``."""

FORMULAS = {
    "load_s": "coordinator exec -> /health 200, on the head node's clock",
    "canary_s": "coordinator exec -> first token of a one-token request",
    "overhead_s": "request received -> coordinator exec, plus the last look that found it loading -> ready: "
    "what the router adds at most, one poll of 50 ms included",
    "phase_*_s": "between two moments of the coordinator's log: connect, open, transfer, kv, warmup",
    "file_bytes": "size of the model's file",
    "layers_offloaded": "as llama.cpp printed them",
    "rpc_model_bytes": "sum of the model buffers that llama.cpp printed for RPC devices",
    "local_*_bytes": "model buffers that llama.cpp printed for the coordinator's own devices",
    "local_model_to_file_ratio": "local_model_bytes / file_bytes",
    "wire_bytes": "received bytes of the backends' interfaces over the load (counters of the node samples); "
    "the head node's own backend is reached over loopback and not counted",
    "wire_floor_s": "8 * wire_bytes / stated link rate of the head node",
    "disk_floor_s": "cold loads: size of the model's file / rate of reading 128 MiB of it on the head node",
    "hash_floor_s": "bytes of tensors over 10 MiB on backends / rate of llama.cpp's hash on one of the head "
    "node's processors",
    "ttft_s": "first non-empty token - request sent",
    "itl_s": "gaps between successive tokens, pooled over requests",
    "tpot_s": "(E2E - TTFT) / (n - 1), n = usage.completion_tokens",
    "e2e_s": "last token - request sent",
    "tokens_per_s": "sum of output tokens / wall time from the first request sent to the last token",
    "prompt_tokens": "asked for, and counted by the server",
    "generated_tokens": "asked for, and counted by the server",
    "concurrency": "requests in flight at once, as asked",
    "requests": "measured ones, warm-ups left out",
    "requests_within_limits": "requests that met every stated limit",
    "output_tokens": "sum of usage.completion_tokens",
    "errors": "requests that were refused, broke off, or were over their deadline",
    "goodput_per_s": "requests that meet every stated limit / time from the first request sent to the last "
    "end, answered or not; an error is a miss",
    "decode_tokens_per_s": "1 / tpot_s, median over requests (client's clock)",
    "server_decode_tokens_per_s": "(predicted_n - 1) / predicted_ms of llama.cpp's timings, median over "
    "requests; llama.cpp's own predicted_per_second divides predicted_n by the time of predicted_n - 1 gaps",
    "server_prompt_tokens_per_s": "prompt_n / prompt_ms of llama.cpp's timings, median over requests",
    "stop_s": "first signal sent to the coordinator -> its exit",
    "pin_s": "pin: playbooks/upgrade.yml from its start to its end",
    "tokens_compared": "parity: greedy tokens of the longer of the two answers",
    "tokens_equal": "parity: greedy tokens before the first whose id differs from the coordinator's alone",
    "largest_logprob_gap": "parity: largest difference of a token's log probability among the equal ones",
    "rate_drift_percent_per_hour": "soak: Theil-Sen slope of the client's decode rate over the requests' "
    "start times, both in ten block medians, in percent of their median an hour",
    "memory_drift": "soak: Theil-Sen slope of a node's used memory over ten block medians of its samples, "
    "bytes an hour",
    "fault_s": "fault: trial's first load -> fault undone",
    "found_after_s": "fault: injection -> the first look whose diagnosis is the injected cause",
    "restarts": "soak: coordinators started after the first, plus restarts of the backends' units",
    "peak": "highest value of the 1 Hz node samples between the trial's start and end",
}
