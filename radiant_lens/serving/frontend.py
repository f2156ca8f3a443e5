"""Steerings in the front end of vLLM: requests are checked before they are scheduled, and models are listed."""

from __future__ import annotations

import functools
from typing import Any

from radiant_lens.errors import RadiantError
from radiant_lens.serving.catalog import NO_STEERING, Catalog, read_catalog, require_model
from radiant_lens.serving.projections import refuse_unserved
from radiant_lens.serving.requests import choose, resolved

_BEAM = "Beam search starts every step as a new prompt, so edits would miss the answer: leave out {}, or sample."


def check_requests(processor_class: Any, sampling_params: type, beam_params: type, client_error: Any) -> None:
    """Have a class of input processors read the catalog and check the steering of every request.

    Args:
        processor_class: `InputProcessor`.
        sampling_params: `SamplingParams`.
        beam_params: `BeamSearchParams`.
        client_error: class of the errors that a server answers with a status of 400.
    """
    init, process, resolve = (
        getattr(processor_class, n) for n in ("__init__", "process_inputs", "resolve_watermarking")
    )

    @functools.wraps(init)
    def read(self: Any, vllm_config: Any, *args: Any, **options: Any) -> None:
        catalog = read_catalog(vllm_config.additional_config)
        if catalog is not None:
            refuse_unserved(vllm_config)
            require_model(catalog, vllm_config.model_config.hf_text_config, vllm_config.model_config.get_head_size())
        self.radiant_catalog = catalog
        init(self, vllm_config, *args, **options)

    @functools.wraps(process)
    def check(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **options: Any) -> Any:
        catalog: Catalog | None = self.radiant_catalog
        if catalog is None or not isinstance(params, sampling_params):
            return process(self, request_id, prompt, params, *args, **options)
        extra_args: Any = getattr(params, "extra_args", None)
        try:
            choice = choose(extra_args, catalog)
        except RadiantError as error:
            raise client_error(str(error)) from error
        request = process(self, request_id, prompt, params, *args, **options)
        request.sampling_params.extra_args = resolved(extra_args, choice)
        return request

    @functools.wraps(resolve)
    def refuse_beams(self: Any, params: Any) -> Any:
        # The first thing that beam search calls; its parameters have no extra arguments.
        catalog: Catalog | None = self.radiant_catalog
        if catalog is not None and catalog.default is not None and isinstance(params, beam_params):
            raise client_error(_BEAM.format(f"`use_beam_search` (this server steers by default: {catalog.default!r})"))
        return resolve(self, params)

    processor_class.__init__, processor_class.process_inputs = read, check
    processor_class.resolve_watermarking = refuse_beams


def refuse_steered_beams(request_class: Any, client_error: Any) -> None:
    """Have a class of OpenAI requests refuse beam search with a steering."""
    to_beam_search_params = request_class.to_beam_search_params

    @functools.wraps(to_beam_search_params)
    def refuse(self: Any, *args: Any, **options: Any) -> Any:
        if (self.vllm_xargs or {}).get("steering", NO_STEERING) != NO_STEERING:
            raise client_error(_BEAM.format("`steering`"))
        return to_beam_search_params(self, *args, **options)

    request_class.to_beam_search_params = refuse


def list_steerings(models_class: Any, card_class: Any) -> None:
    """Have `/v1/models` list the steerings after the model, each with the model as its parent."""
    show = models_class.show_available_models

    @functools.wraps(show)
    async def show_all(self: Any) -> Any:
        models, catalog = await show(self), getattr(self.input_processor, "radiant_catalog", None)
        if catalog is not None:
            parent = self.base_model_paths[0].name
            models.data += [card_class(id=n, root=folder, parent=parent) for n, folder in catalog.folders.items()]
        return models

    models_class.show_available_models = show_all
