"""`python -m radiant_lens.cli`: the commands where no script is installed."""

from radiant_lens.cli import main

if __name__ == "__main__":
    main()
