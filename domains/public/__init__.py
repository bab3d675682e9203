"""Loaders of public data sets in their original formats: files in, a spec and canonical rows out.

Every loader is called ``load(path, out_dir, **options)`` with the folder of the original files, writes under
``out_dir/<domain>/`` and returns ``PreparedDomain`` values, sources first. Which domain is a source and which a target
is an option (``sources``, ``targets``) wherever the set allows a choice. Files are refused with their name and line.

A new loader is one new file in this folder with a function under ``@loader("its-name")``; nothing else lists it.
"""

import importlib
import pkgutil

from domains.public.reading import LOADERS, PreparedDomain

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["LOADERS", "PreparedDomain"]
