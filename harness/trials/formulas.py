"""What each figure in a run means; every run carries this table in ``run.json``."""

FORMULAS = {
    "load_s": "coordinator exec -> /health 200, on the head node's clock",
    "canary_s": "coordinator exec -> first token of a one-token request",
    "overhead_s": "request received -> coordinator exec, plus the last look that found it loading -> ready: "
    "what the router adds at most, one poll of 50 ms included",
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
    "decode_tokens_per_s": "1 / tpot_s, median over requests (client's clock)",
    "server_decode_tokens_per_s": "(predicted_n - 1) / predicted_ms of llama.cpp's timings, median over "
    "requests; llama.cpp's own predicted_per_second divides predicted_n by the time of predicted_n - 1 gaps",
    "server_prompt_tokens_per_s": "prompt_n / prompt_ms of llama.cpp's timings, median over requests",
    "tokens_equal": "parity: greedy tokens before the first whose id differs from the coordinator's alone",
    "largest_logprob_gap": "parity: largest difference of a token's log probability among the equal ones",
    "rate_drift_percent_per_hour": "soak: Theil-Sen slope of the client's decode rate over the requests' "
    "start times, in percent of their median an hour",
    "memory_drift": "soak: Theil-Sen slope of a node's used memory over its samples, bytes an hour",
    "found_after_s": "fault: injection -> the first look whose diagnosis is the injected cause",
    "restarts": "soak: coordinators started after the first, plus restarts of the backends' units",
    "peak": "highest value of the 1 Hz node samples between the trial's start and end",
}
