"""``python -m bipline``: the command line."""

from bipline.face.cli import main

if __name__ == "__main__":
    main()
