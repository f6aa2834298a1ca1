"""Prints in which order ComfyUI's own ExecutionList runs the nodes of each workflow of stdin.

ComfyUI's Python runs it in ComfyUI's folder: `python comfyui_order.py < workflows.json`.
"""

import asyncio
import json
import os
import sys
from typing import Any


def main() -> None:
    workflows = json.load(sys.stdin)
    sys.path[0] = os.getcwd()
    # What ComfyUI prints while its modules are imported is not the answer.
    stdout, sys.stdout = sys.stdout, sys.stderr
    import comfy.cli_args  # noqa: PLC0415 - importable only with the changed path

    comfy.cli_args.args.cpu = True
    import nodes  # type: ignore[import-not-found]  # noqa: PLC0415

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    print(json.dumps([asyncio.run(order_of(workflow)) for workflow in workflows]), file=stdout)


async def order_of(workflow: dict[str, Any]) -> list[str]:
    import nodes  # noqa: PLC0415
    from comfy_execution.graph import (  # type: ignore[import-not-found]  # noqa: PLC0415
        DynamicPrompt,
        ExecutionList,
    )

    waiting = ExecutionList(DynamicPrompt(workflow), NothingCached())
    for node_id, node in workflow.items():
        if getattr(nodes.NODE_CLASS_MAPPINGS[node["class_type"]], "OUTPUT_NODE", False):
            waiting.add_node(node_id)
    order = []
    while not waiting.is_empty():
        node_id, _, _ = await waiting.stage_node_execution()
        order.append(node_id)
        waiting.complete_node_execution()
    return order


class NothingCached:
    def get(self, node_id: str) -> None: ...

    get_local = get


if __name__ == "__main__":
    main()
