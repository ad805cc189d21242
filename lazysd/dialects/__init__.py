"""Target programs, one file each: where they want each expert's gate, up and down."""

from ..layouts.folders import add_folder

add_folder(__name__, __path__)
