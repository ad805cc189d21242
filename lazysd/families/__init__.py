"""Model families, one file each: how experts lie on disk, and what each program calls them."""

from ..layouts.folders import add_folder

add_folder(__name__, __path__)
