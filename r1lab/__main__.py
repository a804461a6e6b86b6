"""`python -m r1lab`, and `accelerate launch -m r1lab`."""

from r1lab.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
