"""One process per live session: it holds the agent, its gateway and its workspace, and obeys one server.

It starts unbound, says `hello` on the link, and is bound to a session by `launch`. While the server is away
it holds gate questions and model calls and spools events; after the grace it ends its agent and exits. If it
dies itself, the reaper ends the agent.

`core.py` is the whole story; `link.py`, `spool.py`, `streams.py`, `stall.py` and `orders.py` are its parts.
`__main__.py` forks runners.
"""
