"""Tools and calls of them, as conversations hold them; read into JSON text of one form, OpenAI's:

    tools  [{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}, ...]
    calls  [{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}, ...]

A call's arguments are an object here, as chat templates expect them, also where they were JSON text (OpenAI's API). A
`DataError` from here has no place yet: the reader knows file and line and adds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from heptune.core.errors import DataError
from heptune.data.json_rows import loads, require_whole_characters


def tools_of(value: Any, column: str) -> str:
    """The tools that a column holds, as a list or as JSON text; '' where it holds none."""
    tools = _parsed(value)
    if tools is None or tools in ("", [], {}):
        return ""
    tools = list(map(_parsed, tools)) if isinstance(tools, list) else [tools]
    return json.dumps([_tool(tool, column) for tool in tools], ensure_ascii=False)


def calls_of(turn: Mapping[str, Any], number: int) -> str:
    """The calls of turn `number`: its `tool_calls`, or OpenAI's older `function_call`; '' where it has none."""
    calls = turn.get("tool_calls") or turn.get("function_call")
    if not calls:
        return ""
    calls = _parsed(calls)
    return json.dumps(
        [_call(call, number) for call in (calls if isinstance(calls, list) else [calls])], ensure_ascii=False
    )


def call_in(text: str) -> str:
    """The calls that a text spells (`{"name": ..., "arguments": {...}}`, or a list of such); '' where it is no call."""
    calls = _parsed(text)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        return ""
    return calls_of({"tool_calls": calls}, 0)


def _tool(tool: Any, column: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(
            f"the column {column!r} has a tool without a name; it must be a list of functions, each with name, "
            "description and parameters, or that list as JSON"
        )
    return tool if function is not tool else {"type": "function", "function": tool}


def _call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"turn {number} has a call without a name; a call is a function with name and arguments")
    arguments = _parsed(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise DataError(
            f"turn {number} calls {function['name']} with arguments that are no JSON object; they must be one, or the "
            "text of one"
        )
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any) -> Any:
    """The value that a JSON text stands for; any other value as it is."""
    if not isinstance(value, str):
        return value
    found, problem = loads(value)
    if problem is not None:
        return value
    require_whole_characters(found)
    return found
