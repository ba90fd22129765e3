"""What the page's shell and its assets are served with."""

import pytest

from .conftest import Served

pytestmark = pytest.mark.anyio


async def test_the_shell_holds_no_data_and_runs_no_inline_script(served: Served) -> None:
    for path in ("/", "/s/ses_1", "/static/session.js", "/static/page.css"):
        async with served.client.get(served.url + path) as response:
            text = await response.text()
            assert response.status == 200
            policy = response.headers["Content-Security-Policy"]
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "ses_1" not in text
            assert path.startswith("/static") or '<script type="module" src=' in text
    status, problem = await served.ask("GET", "/static/../token")
    assert (status, problem["code"]) == (404, "not_found")
    assert (await served.ask("GET", "/static/page.py"))[0] == 404
