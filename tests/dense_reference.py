"""Slow and obvious versions of what the tool computes: one example and one `backward()` at a time, dense algebra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def dense_gradients(model_folder: str, adapter: Path, conversations: list[tuple[str, str]]) -> np.ndarray:
    """(n, p) adapter gradients in float64, one example and one `backward()` at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).double().eval()
    parameters = [value for name, value in model.named_parameters() if "lora_" in name]
    gradients = []
    for question, answer in conversations:
        text = f"<|user|>\n{question}\n<|assistant|>\n{answer.strip()}</s>\n"
        start = text.index("<|assistant|>\n") + len("<|assistant|>\n")
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        labels = ids.clone()
        labels[0, [begin < start for begin, _ in encoded["offset_mapping"]]] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in parameters]).numpy())
    return np.stack(gradients)


def dense_gist(G: np.ndarray, groups: list[str], pool: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Scores (n_pool, n_group) of METHOD section 2, with a dense SVD."""
    _, s, vt = np.linalg.svd(G, full_matrices=False)
    r = int(np.argmax(np.cumsum(s**2) / (s**2).sum() >= share)) + 1
    f, q = pool @ vt[:r].T, G @ vt[:r].T
    names = list(dict.fromkeys(groups))
    t = np.stack([q[[g == name for g in groups]].mean(0) for name in names])
    return (f @ t.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(t, axis=1)


def dense_ekfac(gradients: np.ndarray, left: np.ndarray, right: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(out·in,) damped inverse curvature times a direction, for gradients (n, out, in) of one matrix and its factors'
    eigenvectors: (U ⊗ W) diag(s) (U ⊗ W)ᵀ + 0.1 mean(s), as one dense matrix."""
    s = np.mean([(left.T @ one @ right) ** 2 for one in gradients], axis=0)
    K = np.kron(left, right)
    return np.linalg.solve(K @ np.diag(s.ravel()) @ K.T + 0.1 * s.mean() * np.eye(s.size), direction)
