"""``python -m wattline.regtest.node``: one practice node, with lightningd's options."""

from __future__ import annotations

import asyncio
import sys

from wattline.regtest.node.daemon import PracticeNode
from wattline.regtest.node.options import OptionError, Options


async def _run(options: Options) -> None:
    await PracticeNode(options).run()


def main() -> int:
    try:
        asyncio.run(_run(Options.parse(sys.argv[1:])))
    except OptionError as error:
        sys.stderr.write(f"practice node: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
