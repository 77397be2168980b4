"""`python -m clipo_trl.cli`: the command `clipo` for launchers, which start scripts and modules."""

from .main import main


if __name__ == "__main__":
    main()
