"""Write a folder for sentence-transformers: ``MultiVectorEncoder(folder, trust_remote_code=True)``."""

from __future__ import annotations

from filip.errors import UserError
from filip.export.card import write_card
from filip.export.clip_tokenizer import clip_tokenizer
from filip.export.folder import new_folder
from filip.export.hf_folder import copy_code, refuse_computed_tables, tower_config
from filip.files import write_json
from filip.runs.source import ModelSource

USE = """    from sentence_transformers import MultiVectorEncoder
    model = MultiVectorEncoder("FOLDER", trust_remote_code=True)
    texts, images = model.encode_query(["a photo of a cat"]), model.encode_document([image])
    print(model.similarity(texts, images))      # text to image; with the images first, image to text
"""
CODE = ("multi_vector_filip.py", "filip_towers.py", "filip_inputs.py")


def write_multi_vector(source: ModelSource, out: str) -> None:
    """Write ``modules.json`` with our module, weights, tokenizer and code; the similarity is the mean of maxima.

    Raises UserError for a pooled model, which has one vector, not several.
    """
    if source.model.config.interaction != "token_wise":
        raise UserError(
            "to=mv is for token-wise models: this one is pooled and has a single vector per image and text; "
            "to=hf and to=open_clip hold it"
        )
    tokenizer = clip_tokenizer(source.model)
    refuse_computed_tables(source.model, "mv")
    from sentence_transformers import MultiVectorEncoder

    from filip.export.standalone.multi_vector_filip import FilipMultiVector

    module = FilipMultiVector(tower_config(source.model), tokenizer)
    module.towers.load_state_dict(source.model.state_dict())
    encoder = MultiVectorEncoder(modules=[module], similarity_fn_name="meanmaxsim", device="cpu")
    with new_folder(out) as folder:
        encoder.save(str(folder), create_model_card=False)
        copy_code(folder, CODE)
        write_json(
            folder / "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": "multi_vector_filip.FilipMultiVector"}],
        )
        write_card(folder, source, "sentence-transformers", USE)
