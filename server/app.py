"""The web server's parts put together: Omaha, files, API, dashboard, health, numbers.

An application is built from its arguments; nothing is global. Work on the database runs in
threads, so that a slow disk never stops the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from server.api import build_api
from server.errors import DatabaseError, ServerError
from server.files import PayloadFiles, RepositoryFiles, StaticFolder
from server.freshness import Freshness
from server.metrics import Metrics
from server.omaha import OmahaDesk
from server.pages import Pages
from server.shield import RequestCounter, SecurityHeaders
from server.upkeep import refresh_online, sweep
from updater.omaha import OmahaFormatError, decode_request, encode_response
from updater.omaha.codec import REQUEST_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request

    from server.desk import Desk

log = logging.getLogger(__name__)

UPKEEP_S: Final = 60  # how often the server looks whether something is due
SWEEP_EVERY: Final = 10  # of these looks, one drops what is old
BUSY_RETRY_S: Final = 5
BODY_PATIENCE_S: Final = 30  # a body has 2 KiB
OMAHA_THREADS: Final = 8

_ANY_METHOD: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_STATIC: Final = Path(__file__).with_name("static")


class Site:
    """The endpoints of one desk that are not files."""

    def __init__(self, desk: Desk, public_url: str) -> None:
        """Build what the endpoints need; nothing is read yet."""
        self.desk = desk
        self.freshness = Freshness(desk)
        self.metrics = Metrics(desk, self.freshness)
        self._omaha = OmahaDesk(desk, public_url.rstrip("/"), self.metrics)
        self._pages = Pages(desk, self.freshness)
        # Writers take turns anyway; the other threads are left to those who read files.
        self._turns = CapacityLimiter(OMAHA_THREADS)

    async def omaha(self, request: Request) -> Response:
        """Answer an Omaha POST: 200 and XML for whatever can be read as a request."""
        if request.method != "POST":
            return PlainTextResponse(
                "omaha-method: an Omaha client posts its request here\n",
                status_code=405,
                headers={"Allow": "POST"},
            )
        try:
            async with asyncio.timeout(BODY_PATIENCE_S):
                body = await _bounded_body(request)
        except TimeoutError:
            return PlainTextResponse("omaha-format: the body came too slowly\n", status_code=408)
        if body is None:
            return PlainTextResponse(
                f"omaha-format: more than {REQUEST_MAX_BYTES} bytes\n", status_code=413
            )
        try:
            answer = await to_thread.run_sync(self._answer, body, limiter=self._turns)
        except OmahaFormatError as error:
            return PlainTextResponse(f"{error.code}: {error}\n", status_code=400)
        return Response(answer, media_type="text/xml")

    async def dashboard(self, _: Request) -> Response:
        """Return the dashboard."""
        return HTMLResponse(await run_in_threadpool(self._pages.dashboard), headers=_FRESH)

    async def fragment(self, _: Request) -> Response:
        """Return the changing part of the dashboard."""
        return HTMLResponse(await run_in_threadpool(self._pages.fragment), headers=_FRESH)

    async def health(self, _: Request) -> Response:
        """Tell whether database and signatures are in order; 503 when not."""
        facts = await run_in_threadpool(self._health)
        return JSONResponse(
            facts, status_code=200 if facts["status"] == "ok" else 503, headers=_FRESH
        )

    async def numbers(self, _: Request) -> Response:
        """Return the numbers for Prometheus."""
        text = await run_in_threadpool(self.metrics.exposition)
        return Response(text, media_type="text/plain; version=0.0.4", headers=_FRESH)

    def _answer(self, body: bytes) -> bytes:
        return encode_response(self._omaha.answer(decode_request(body)))

    def _health(self) -> dict[str, str]:
        try:
            self.desk.store.version()
            ends = self.freshness.soonest()
        except ServerError as error:
            return {"status": error.code, "message": str(error), "hint": error.hint}
        if ends <= self.desk.clock():
            return {
                "status": "metadata-expired",
                "message": f"a signature ended at {ends.isoformat()}",
                "hint": "See `bascule-server metadata show`, then sign with `metadata refresh`.",
            }
        return {"status": "ok", "metadata_holds_until": ends.isoformat()}


def build_app(desk: Desk, *, public_url: str, upkeep: bool = True) -> Starlette:
    """Return the whole web application of a desk.

    Args:
        desk: which desk; its store is closed when the application ends.
        public_url: how nodes reach it.
        upkeep: whether it signs again and sweeps by itself; tests leave it out.
    """
    site = Site(desk, public_url)
    return Starlette(
        routes=[
            Route("/v1/update/", site.omaha, methods=_ANY_METHOD),
            Route("/v1/update", site.omaha, methods=_ANY_METHOD),
            Route("/", site.dashboard),
            Route("/fragment", site.fragment),
            Route("/healthz", site.health),
            Route("/metrics", site.numbers),
            Mount("/repository/metadata", RepositoryFiles(desk.repository.metadata_folder)),
            Mount("/repository/targets", RepositoryFiles(desk.repository.targets_folder)),
            Mount("/payloads", PayloadFiles(desk.payloads)),
            Mount("/static", StaticFolder(_STATIC)),
            Mount("/api", build_api(desk, site.freshness)),
        ],
        middleware=[
            Middleware(RequestCounter, metrics=site.metrics),
            Middleware(SecurityHeaders),
        ],
        exception_handlers={ServerError: _refuse},
        lifespan=_lifespan(desk, upkeep=upkeep),
    )


_FRESH: Final = {"Cache-Control": "no-store"}


def _lifespan(
    desk: Desk, *, upkeep: bool
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_keep_up(desk)) if upkeep else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            desk.store.close()

    return lifespan


async def _keep_up(desk: Desk) -> None:
    """Look every minute whether something must be signed again or dropped."""
    looks = 0
    while True:
        jobs = (refresh_online, sweep) if looks % SWEEP_EVERY == 0 else (refresh_online,)
        for job in jobs:
            try:
                await run_in_threadpool(job, desk)
            except (ServerError, OSError) as error:
                log.error("upkeep failed job=%s error=%s", job.__name__, error)  # noqa: TRY400
        looks += 1
        await asyncio.sleep(UPKEEP_S)


async def _bounded_body(request: Request) -> bytes | None:
    """Return the body, or None as soon as it proves too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > REQUEST_MAX_BYTES:
            return None
    return bytes(body)


def _refuse(_: Request, error: Exception) -> Response:
    """Answer a coded error with one line; a busy database is worth another try."""
    headers: Mapping[str, str] | None = None
    status = 500
    if isinstance(error, DatabaseError):
        status, headers = 503, {"Retry-After": str(BUSY_RETRY_S)}
    code = error.code if isinstance(error, ServerError) else "internal"
    log.error("request failed code=%s error=%s", code, error)
    return PlainTextResponse(f"{code}: {error}\n", status_code=status, headers=headers)
