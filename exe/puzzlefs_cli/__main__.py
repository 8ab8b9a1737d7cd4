"""``python -m puzzlefs_cli``."""

from puzzlefs_cli.main import run

if __name__ == "__main__":
    run()
