"""The model gateway: the agent's only way to its model. Placeholder key in, real key out, bytes untouched.

One gateway per session, on a loopback socket it is given. The agent is told `url(wire)` as its base URL and
the placeholder as its key; the gateway checks the placeholder, puts the provider's headers in its place and
streams both ways. A call that generates is read once (`request.py`), reserved with the `Meter` before it
leaves, counted from its answer on the way (`reading.py`, `tally.py`) and settled; only a grant that says so
changes a byte of it. The real key is in no answer, error or repr, and nothing is logged.
"""

from omnigent.gateway.core import Gateway as Gateway
