"""`python -m dcmtools` is the same as `dcmtools`."""

from dcmtools.cli.main import main

if __name__ == "__main__":
    main()
