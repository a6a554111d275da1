"""python -m pyllama2c"""

import sys

from pyllama2c.cli import main

sys.exit(main())
