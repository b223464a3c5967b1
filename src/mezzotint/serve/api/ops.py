"""For those who run the server: is the process alive, can it draw."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from mezzotint.serve.api.dependencies import gateway_of
from mezzotint.serve.gateway import Gateway

__all__ = ["router"]

router = APIRouter()


# Load balancers ask with HEAD as well.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the process is alive")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Whether a model is loaded and has drawn its warm-up image; 503 until then")
async def readyz(gateway: Annotated[Gateway, Depends(gateway_of)]) -> dict[str, Any]:
    info = await gateway.ready()
    return {"status": "ready", "model": info.model, "revision": info.revision}
