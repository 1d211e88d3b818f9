"""Small files in the forms of other tools: numbers invented, names and nesting as the tools write them.

lm-evaluation-harness: lm_eval/evaluator.py, evaluator_utils.py and loggers/evaluation_tracker.py of commit 4e7e0d4.
flash-linear-attention: benchmarks/ops/run.py and benchmarks/modules/ of commit bc3b101; the tables by `triton.testing`
of triton 3.7, whose `Mark` writes them.
"""

from __future__ import annotations

import json
from typing import Any

LM_EVAL: dict[str, Any] = {
    "results": {
        "lambada_openai": {
            "name": "lambada_openai",
            "alias": "lambada_openai",
            "sample_len": 5153,
            "perplexity,none": 26.02,
            "perplexity_stderr,none": 0.94,
            "acc,none": 0.382,
            "acc_stderr,none": 0.0068,
        },
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.02,
            "exact_match_stderr,strict-match": "N/A",
            "exact_match,flexible-extract": 0.03,
            "exact_match_stderr,flexible-extract": 0.005,
        },
        "all": {"alias": "all", "acc,none": 0.2},
    },
    "groups": {"all": {"alias": "all", "acc,none": 0.2}},
    "group_subtasks": {"all": ["lambada_openai", "gsm8k"]},
    "configs": {"lambada_openai": {"task": "lambada_openai", "num_fewshot": 0}},
    "versions": {"lambada_openai": 1.0, "gsm8k": 3.0},
    "n-shot": {"lambada_openai": 0, "gsm8k": 5},
    "higher_is_better": {
        "lambada_openai": {"perplexity": False, "acc": True},
        "gsm8k": {"exact_match": True},
    },
    "n-samples": {
        "lambada_openai": {"original": 5153, "effective": 5153},
        "gsm8k": {"original": 1319, "effective": 100},
    },
    "config": {"model": "hf", "model_args": {"pretrained": "fla-hub/gla-340M"}, "device": "cuda:0", "limit": None},
    "git_hash": "4e7e0d4",
    "date": 1767323045.25,
    "pretty_env_info": "PyTorch version: 2.9.0+cu129\nOS: Ubuntu 22.04 (x86_64)\nPython version: 3.11.9 (main)\n"
    "GPU models and configuration: \nGPU 0: NVIDIA H200\nCPU:\nModel name:   Intel Xeon\n",
    "transformers_version": "5.0.0",
    "lm_eval_version": "0.4.9",
    "model_source": "hf",
    "model_name": "fla-hub/gla-340M",
    "task_hashes": {},
}

FLA: dict[str, Any] = {
    "machine_info": {
        "hostname": "node7",
        "platform": "Linux-6.8-x86_64",
        "pytorch_version": "2.9.0+cu129",
        "cuda_version": "12.9",
        "device_platform": "cuda",
        "git_label": "main[7978c0bd]",
        "triton_version": "3.5.0",
        "gpu_name": "NVIDIA GB200",
        "gpu_count": 4,
        "gpu_memory_gb": 184.0,
    },
    "results": [
        {"op": "chunk_gla", "mode": "fwd", "B": 1, "T": 8192, "H": 96, "D": 128, "median_ms": 1.268, "p20_ms": 1.26,
         "p80_ms": 1.275},
        {"op": "chunk_gla", "mode": "fwdbwd", "B": 1, "T": 8192, "H": 96, "D": 128, "median_ms": 4.818,
         "p20_ms": 4.8, "p80_ms": 4.9},
        {"op": "fused_attnres[gluon]", "mode": "fwd", "B": 1, "T": 2048, "H": 16, "D": 128, "L": 8,
         "median_ms": 0.5, "p20_ms": 0.49, "p80_ms": 0.52},
    ],
}  # fmt: skip

CSV = """B,T,naive (Execution Time (ms)),fused (Execution Time (ms))
16,128,0.015360,0.009216
16,256.000000,0.025600,
"""

PRINTED = """Performance:
      B      T  naive (Execution Time (ms))  fused (Execution Time (ms))
0  16.0  128.0                     0.015360                     0.009216
1  16.0  256.0                     0.025600                     0.012288
"""


def text(data: dict[str, Any], **changes: Any) -> bytes:
    """As JSON, with other members at the top."""
    return json.dumps({**data, **changes}).encode()
