"""The routes that give out what a release is made of; all of them only read.

For: `shallop-fleet verify` and whoever checks a release from outside.

    GET    /api/roots                        [base64 of a signed root], oldest first
    GET    /api/releases/DIGEST/manifest     the manifest's bytes
    GET    /api/releases/DIGEST/envelope     the signed release as it is published
    GET    /api/releases/DIGEST/deltas       [DeltaHint]
    GET    /api/blobs/SHA256                 one chunk

Not for: deciding anything (`fleet.publish.archive`), or errors' form (`fleet.api.http`).
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fleet.api.exchange import Handler, answer
from fleet.publish.archive import Archive


def routes(archive: Archive) -> tuple[tuple[str, str, Handler], ...]:
    """Method, path and handler of each."""

    def raw(read: Callable[[str], bytes], name: str) -> Handler:
        async def handler(request: Request) -> Response:
            content = await run_in_threadpool(read, request.path_params[name])
            return Response(content, media_type="application/octet-stream")

        return handler

    async def roots(_request: Request) -> Response:
        return answer(await run_in_threadpool(archive.roots))

    async def deltas(request: Request) -> Response:
        return answer(await run_in_threadpool(archive.deltas, request.path_params["release"]))

    return (
        ("GET", "/api/roots", roots),
        ("GET", "/api/releases/{release}/manifest", raw(archive.manifest, "release")),
        ("GET", "/api/releases/{release}/envelope", raw(archive.envelope, "release")),
        ("GET", "/api/releases/{release}/deltas", deltas),
        ("GET", "/api/blobs/{digest}", raw(archive.blob, "digest")),
    )
