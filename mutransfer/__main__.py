"""`python -m mutransfer`, the same as the `mutransfer` command."""

import sys

from mutransfer.cli import main

sys.exit(main())
