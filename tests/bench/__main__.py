"""``python -m tests.bench NAME [options]``: the program behind the speed and memory figures.

Each benchmark runs both sides alternately in one go and prints the ratio with its spread.
"""

import importlib
import pkgutil
import sys

import tests.bench


def main() -> int:
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(tests.bench.__path__)
        if not module.name.startswith("_") and module.name != "measure"
    )
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: python -m tests.bench {{{','.join(names)}}} [options]", file=sys.stderr)
        return 2
    importlib.import_module(f"tests.bench.{sys.argv[1]}").run(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
