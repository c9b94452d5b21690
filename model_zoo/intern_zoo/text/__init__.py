"""The text side: open_clip's transformer and tokenizer, or a tokenizer of one's own; no network access."""

from intern_zoo.text.tokenizer import CLIP, FolderTokenizer, Tokenizer, tokenizer
from intern_zoo.text.transformer import TextTransformer, create_text_transformer

__all__ = ["CLIP", "FolderTokenizer", "TextTransformer", "Tokenizer", "create_text_transformer", "tokenizer"]
