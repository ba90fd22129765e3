"""Policies: what may happen, decided outside the model from what happened.

`contract` has the values that go in and come out, `language` reads rules from YAML, `state` is the fold of a
session tree that they remember, `engine` the one decision; `builtins` are policies by name, one file each.
Nothing is imported with the package: whoever decides pays for the engine, nobody else.
"""
