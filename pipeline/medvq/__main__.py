"""``python -m medvq``."""

from medvq.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
