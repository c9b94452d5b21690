"""The text side: open_clip's transformer and tokenizer, both without network access."""

from intern_zoo.text.tokenizer import Tokenizer, tokenizer
from intern_zoo.text.transformer import TextTransformer, create_text_transformer

__all__ = ["TextTransformer", "Tokenizer", "create_text_transformer", "tokenizer"]
