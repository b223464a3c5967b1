"""What went wrong, as a sentence that says what to do. Plain text; whoever shows it escapes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mezzotint.ui.service import Refused, ServiceError

__all__ = ["Notice", "as_sentence", "notice_of", "sentence_of"]

AWAY = "The drawing service does not answer just now. Nothing is lost, and this page goes on by itself."

# By the service's code; `{said}` is its own message, a sentence that names the field and what it takes.
SENTENCES = {
    "invalid_value": "{said} Change it and draw again.",
    "not_supported": "{said} Leave it out and draw again.",
    "invalid_api_key": "The service asks this page for a key it does not have. Whoever runs the page can "
    "give it one.",
    "permission_denied": "This page's key does not allow that: {said}",
    "model_not_found": "The service has no such model. Choose another under Settings.",
    "payload_too_large": "That picture is too large: {said} Make it smaller and try again.",
    "unsupported_image": "That file cannot be read as a picture. Choose a PNG, JPEG or WebP.",
    "rate_limit_exceeded": "You have asked for as much as this page's key allows just now.",
    "queue_full": "The service is full just now.",
    "deadline_unreachable": "It cannot be finished in the time it was given: {said}",
    "deadline_exceeded": "It was not finished in the time it was given. Draw it again with fewer steps, "
    "or later.",
    "model_loading": "The service is starting or stopping. What is in your list goes on by itself; ask for "
    "anything else again in a moment.",
    "replica_lost": "The service lost what was drawing this. Draw again in a moment.",
    "shutting_down": "The service is restarting. Drawings that were asked for go on by themselves.",
    "store_unavailable": "The service cannot reach its store just now. Draw again in a moment.",
    "generation_failed": "The model made no usable picture of this. Draw again, with another seed or other "
    "settings.",
    "job_not_found": "The service does not keep this drawing any more.",
    "image_not_found": "The service does not keep this picture any more.",
}
# The service's names of fields that read like none of the form's.
LABELS = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "negative_prompt": "Leave out",
    "style_preset": "Style",
    "output_format": "Format",
    "hires.scale": "Second stage",
    "hires.strength": "Second stage's strength",
    "hires.steps": "Second stage's steps",
    "hires.upscaler": "Second stage's upscaler",
    "hires": "Second stage",
    "strength": "How far from it",
    "n": "Pictures",
    "loras": "LoRAs",
    "controls": "ControlNet",
    "image_prompts": "IP-Adapter",
    **{
        f"{place}.{field}": label
        for each, labels in {
            "controls": {
                "name": "ControlNet",
                "image": "Picture to follow",
                "preprocessor": "Read from it",
                "scale": "Guide strength",
                "start": "Guide from",
                "end": "Guide until",
            },
            "image_prompts": {
                "name": "IP-Adapter",
                "image": "Picture to read",
                "scale": "Image prompt strength",
            },
        }.items()
        for place in (f"{each}[0]", each)
        for field, label in labels.items()
    },
}
# In one go, lest a label be taken for a field; the longest first, for some begin with others.
FIELD = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(LABELS, key=len, reverse=True)))})(?!\w)")
INTERNAL = "Something went wrong inside the service. Draw again; if it stays, tell whoever runs it."


@dataclass(frozen=True)
class Notice:
    """text: the sentence. wait_s: how long to wait before the same is worth another try."""

    text: str
    wait_s: float | None = None


def notice_of(error: ServiceError) -> Notice:
    if isinstance(error, Refused):
        return Notice(sentence_of(error.code, error.message), error.retry_after_s)
    return Notice(AWAY)


def sentence_of(code: str, said: str) -> str:
    """code, said: as in the service's error."""
    return SENTENCES.get(code, INTERNAL).format(said=as_sentence(said)).strip()


def as_sentence(said: str) -> str:
    """The service's words with a capital and a full stop, and the fields called as the form calls them."""
    said = FIELD.sub(lambda field: LABELS[field[0]], " ".join(said.split()))
    if not said:
        return ""
    begun = said[0].upper() + said[1:]
    return begun if begun.endswith((".", "!", "?", "…")) else begun + "."
