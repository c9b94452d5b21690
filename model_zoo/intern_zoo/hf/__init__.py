"""Folders that Hugging Face transformers loads. Nothing outside of this package imports transformers.

`export` writes a folder, `reload` loads one in a process of its own, `state_dict` reads one back into the zoo.
"""
