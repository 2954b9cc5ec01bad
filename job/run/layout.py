"""Every key and file name of a run.

    recipe.json                                   what determines the result, and the run's identity
    claims/<generation>                           who took that generation; the first to write it has it
    objects/<generation>-<owner>/<sha256>         immutable content
    manifests/<generation>-<number>.json          immutable: names the objects of one checkpoint
    HEAD.json                                     the owner and its newest manifest; moved by compare-and-swap
    heartbeats/<generation>.json                  where an attempt is
    phases/<name>-<sha256>.safetensors            immutable: the weights after a phase, named by the history
    report.json, history.jsonl, ...               copies of the outputs, for people

A checkpoint's objects are the training state or, of a finished run, its outputs.
"""

from __future__ import annotations

import re

HEAD = "HEAD.json"
CLAIMS, MANIFESTS, OBJECTS, HEARTBEATS = "claims", "manifests", "objects", "heartbeats"

PHASES = "phases"

RECIPE = "recipe.json"
HISTORY = "history.jsonl"
WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.npz"
SAMPLES = "samples.png"
REPORT = "report.json"
PAGE = "report.html"
CARD = "README.md"
ONNX = "model.onnx"

STATE = "state.pt"
"""The training state's name among a checkpoint's objects."""

OUTPUTS = (WEIGHTS, PREDICTIONS, HISTORY, SAMPLES, REPORT)
"""The names of a finished run's objects; the report is published last."""

MAX_COUNT = 999_999_999  # of generations, and of an attempt's manifests
COUNT = "[1-9][0-9]{0,8}"
OWNER = "[0-9a-f]{16}"
SHA256 = "[0-9a-f]{64}"
MANIFEST_KEY = rf"{MANIFESTS}/({COUNT})-({COUNT})\.json"
OBJECT_KEY = rf"{OBJECTS}/({COUNT})-({OWNER})/{SHA256}"


def claim(generation: int) -> str:
    """Return where the claim of an attempt is."""
    return f"{CLAIMS}/{generation}"


def manifest(generation: int, number: int) -> str:
    """Return where the `number`th manifest of an attempt is."""
    return f"{MANIFESTS}/{generation}-{number}.json"


def stored(generation: int, owner: str, sha256: str) -> str:
    """Return where an attempt keeps an object."""
    return f"{OBJECTS}/{generation}-{owner}/{sha256}"


def phase_weights(phase: str, sha256: str) -> str:
    """Return where the weights after a phase of the recipe are."""
    return f"{PHASES}/{phase}-{sha256}.safetensors"


def heartbeat(generation: int) -> str:
    """Return where the heartbeat of an attempt is."""
    return f"{HEARTBEATS}/{generation}.json"


def unsaved(fingerprint: str, generation: int | str, owner: str) -> str:
    """Return the name, in the cache, of a state that no store took, by its recipe and its attempt."""
    return f"unsaved-{fingerprint}-{generation}-{owner}.pt"


def unsaved_before(fingerprint: str) -> str:
    """Return the name that an older version gave it, by the recipe alone."""
    return f"unsaved-{fingerprint}.pt"


def keeper_of(name: str) -> tuple[int, str] | None:
    """Return (generation, owner) of a kept state's name, None for any other name."""
    match = re.fullmatch(rf"unsaved-[0-9a-f]+-({COUNT})-({OWNER})\.pt", name)
    return (int(match[1]), match[2]) if match else None


def generation_of(key: str) -> int | None:
    """Return the generation of a claim's key, None for any other key."""
    match = re.fullmatch(rf"{CLAIMS}/({COUNT})", key)
    return int(match[1]) if match else None


def order_of(key: str) -> tuple[int, int] | None:
    """Return (generation, number) of a manifest's key as integers, None for any other key."""
    match = re.fullmatch(MANIFEST_KEY, key)
    return (int(match[1]), int(match[2])) if match else None


def writer_of(key: str) -> tuple[int, str] | None:
    """Return (generation, owner) of an object's key, None for any other key."""
    match = re.fullmatch(OBJECT_KEY, key)
    return (int(match[1]), match[2]) if match else None
