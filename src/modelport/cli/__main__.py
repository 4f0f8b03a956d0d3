"""`python -m modelport.cli`, the same as `modelport`."""

from modelport.cli.app import main

if __name__ == "__main__":
    main()
