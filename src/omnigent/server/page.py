"""The plain live page: a shell without data, its script and its style. Data comes by the API, with a token.

The shell needs no token, since it holds nothing; the token reaches the script in the URL's fragment, which
no server ever sees.
"""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from omnigent.errors import NotFound

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_ASSETS = {
    path.name: path.read_bytes()
    for path in (Path(__file__).parent / "assets").iterdir()
    if path.suffix in _TYPES
}


@router.get("/")
async def sessions_page() -> Response:
    return _asset("sessions.html")


@router.get("/s/{session_id}")
async def session_page(session_id: str) -> Response:
    return _asset("session.html")


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    if name not in _ASSETS:
        raise NotFound(f"There is nothing at {request.url.path}.")
    return _asset(name)


def _asset(name: str) -> Response:
    return Response(_ASSETS[name], headers=_HEADERS, media_type=_TYPES[Path(name).suffix])
