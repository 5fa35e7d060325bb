"""A small model whose tokenizer is of RoBERTa's kind: bytes, and pairs of them, of whole texts."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.encoder.models import TEXTS, save_bert

VOCABULARY = 300


def save_byte_model(folder: Path, truncation_side: str = "right") -> Path:
    """Save a plain BERT folder with such a tokenizer, which cuts texts at that side."""
    save_bert(folder, vocab_size=VOCABULARY)
    (folder / "vocab.txt").unlink()
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel()
    specials, alphabet = ["<s>", "</s>"], ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", truncation_side=truncation_side)
    tokenizer.save_pretrained(folder)
    return folder
