"""The configuration files that people have for ``xl create``, read as options of ``xenemu run``.

`syntax` reads the file, `disk` the text that describes a disk, and `config` says what each key
means here. The reference is xl.cfg(5) of Xen 4.17.
"""

from xenemu.xl.config import Config, Note, is_config, read_config

__all__ = ["Config", "Note", "is_config", "read_config"]
