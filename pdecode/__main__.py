import sys

from pdecode.cli.main import main

sys.exit(main())
