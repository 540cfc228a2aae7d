"""`python -m autoencoders train`, as the console command `autoencoders train`."""

from .cli.main import main

if __name__ == "__main__":
    main()
