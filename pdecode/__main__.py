import sys

from pdecode.cli import main

sys.exit(main())
