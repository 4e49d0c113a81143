"""A page for your own photos and words. Needs gradio: pip install gradio.

    partseg demo ckpt=output/my_run

Arguments are key=value:
    ckpt        a .pt file, a run directory, a saved folder, a public checkpoint's file or hub name (required)
    photos      folder of photos to pick from (default: none, upload only)
    vocabulary  what stands in the text box at first: text, YAML file or shipped name
    host, port  where the page is served (default 127.0.0.1, the first free port from 7860): this machine only
    max_megapixels, max_upload_mb   limits of a photo (default 24 and 30)
    max_parts   object-parts that may be asked for at once (default 300); more take more memory
    device      cpu, cuda, ... (default: a GPU where there is one)
    plugins     module of yours that the checkpoint's network is from; may be given several times
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from partseg import api
from partseg.data.images import Photo, list_images, read_photo
from partseg.photo_prediction import PhotoPrediction, shrunk
from partseg.utils import arguments, page
from partseg.utils.files import scratch_folder
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.words import as_vocabulary, hints, text_of_vocabulary, vocabulary_of_text

if TYPE_CHECKING:
    import gradio

SIDE = 1200
"""Longer side of the pictures on the page; downloads keep the photo's size."""

WORDS = "dog: head, torso, leg, tail\ncat: head, torso, leg, tail\ncar: wheel, window, headlight"
NO_WORDS = "object: part"
"""Stands for the words of a system that cuts a given object and names nothing."""

ORACLE, EVERYTHING, PHRASES = "oracle_obj", "pred_all", "phrases"
ANYWHERE = "Drag to draw around the object, or click on it. Without a mark the object may be anywhere."
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:"
)
"""Sent with every page: the browser asks this server and nobody else."""


@dataclass(frozen=True)
class Options:
    ckpt: str
    photos: Path | None = None
    vocabulary: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    max_megapixels: float = 24.0
    max_upload_mb: int = 30
    max_parts: int = 300
    device: str | None = None
    plugins: tuple[str, ...] = ()


class Page:
    """What the page does when something is pressed; no state but the model. Downloads are written into `folder`."""

    def __init__(self, segmenter: api.Segmenter, *, max_pixels: int, max_parts: int, folder: Path) -> None:
        self.segmenter = segmenter
        self.max_pixels = max_pixels
        self.max_parts = max_parts
        self.folder = folder
        self.cuts_object = segmenter.input.needs_object

    def show_photo(self, path: str | None, protocol: str) -> tuple[str, str]:
        """(photo to draw on, status)."""
        if not path:
            return "", ""
        try:
            photo = self._read(path)
        except (ValueError, OSError) as error:
            return "", problem(without_folder(str(error), path))
        image, _ = shrunk(np.asarray(photo.image), np.zeros(photo.size, bool), SIDE)
        caption = ", ".join([f"{photo.image.width} x {photo.image.height} pixels", *photo.notes])
        hint = ANYWHERE if not self.cuts_object else "Drag to draw around the object."
        active = protocol == ORACLE
        return page.marker(image, target="#marks textarea", active=active, hint=hint, caption=caption), ""

    def objects(self, words: str) -> list[str]:
        """Object names of the text so far; empty while it cannot be read."""
        try:
            return list(vocabulary_of_text(words).objects)
        except (ValueError, OSError):
            return []

    def find_parts(
        self, path: str | None, words: str, protocol: str, object_name: str | None, marks: str
    ) -> tuple[str, str, list[str] | None]:
        """(result, status, files to download); with protocol PHRASES every line of the words is a phrase."""
        if not path:
            return "", problem("There is no photo yet: upload one first."), None
        if protocol == PHRASES:
            return self.find_phrases(path, words)
        try:
            vocabulary = vocabulary_of_text(words)
            if len(vocabulary) > self.max_parts:
                raise ValueError(f"These are {len(vocabulary)} object-parts, allowed are {self.max_parts}")
            photo = self._read(path)
            mask = None
            if protocol == ORACLE:
                object_name = object_name if object_name in vocabulary.objects else None
                if object_name is None:
                    raise ValueError("Choose which object it is, or let everything be found")
                mask = self._mask(photo, vocabulary, marks)
            prediction = self.segmenter.predict(
                photo.image,
                vocabulary,
                protocol=protocol,
                object=object_name if protocol == ORACLE else None,
                object_mask=mask,
            )
            assert isinstance(prediction, PhotoPrediction)
            files = prediction.save(tempfile.mkdtemp(dir=self.folder), stem=photo.name, max_side=None)
        except (ValueError, OSError) as error:
            return "", problem(without_folder(str(error), path)), None
        return view(prediction), summary(prediction), [str(file) for file in files]

    def find_phrases(self, path: str, text: str) -> tuple[str, str, list[str] | None]:
        """(result, status, files to download) of a mask per line."""
        try:
            phrases = Phrases.of([line for line in text.splitlines() if line.strip()])
            if len(phrases) > self.max_parts:
                raise ValueError(f"These are {len(phrases)} phrases, allowed are {self.max_parts}")
            photo = self._read(path)
            prediction = self.segmenter.predict(photo.image, phrases=phrases.texts)
            assert isinstance(prediction, PhotoPrediction)
            files = prediction.save(tempfile.mkdtemp(dir=self.folder), stem=photo.name, max_side=None)
        except (ValueError, OSError) as error:
            return "", problem(without_folder(str(error), path)), None
        return view(prediction), summary(prediction), [str(file) for file in files]

    def _read(self, path: str) -> Photo:
        return read_photo(path, max_pixels=self.max_pixels)

    def _mask(self, photo: Photo, vocabulary: Vocabulary, marks: str) -> np.ndarray | None:
        """Outlines, and the region of the predicted object under each click; None without marks."""
        mask, clicks = page.read_marks(marks, photo.size)
        if self.cuts_object and (clicks or not mask.any()):
            raise ValueError("This model cuts one object into parts and finds none itself: draw around it on the photo")
        if clicks:
            labels = self.segmenter.predict(photo.image, vocabulary).labels  # type: ignore[union-attr]
            owners = np.append(vocabulary.object_of, -1)[labels]
            for row, column in clicks:
                if owners[row, column] < 0:
                    raise ValueError("The model sees no object where you clicked; draw around the object instead")
                regions, _ = ndimage.label(owners == owners[row, column])
                mask = mask | (regions == regions[row, column])
        return mask if mask.any() else None


def problem(message: str) -> str:
    return f'<div class="bad" role="alert">{escape(message[:600])}</div>'


def without_folder(message: str, path: str) -> str:
    """The message with the file's name in place of where the server keeps it."""
    return message.replace(path, Path(path).name)


def view(prediction: PhotoPrediction) -> str:
    found, names = prediction.by_instance()
    image, labels = shrunk(prediction.image, found, SIDE)
    return page.viewer(image, labels, names)


def summary(prediction: PhotoPrediction) -> str:
    count, kind = len(prediction.found), "part" if isinstance(prediction.words, Vocabulary) else "phrase"
    words = f"{count} {kind}{'' if count == 1 else 's'} found" if count else "Nothing of these words was found"
    told = hints(prediction.words) if isinstance(prediction.words, Vocabulary) else ()
    notes = "".join(f"<br>Note: {escape(hint)}." for hint in told)
    if prediction.caution:
        notes = f"<br><b>This model was {escape(prediction.caution)}.</b>" + notes
    return f'<div class="good">{words}. Point at the picture or at a name; click a name to keep it lit.{notes}</div>'


def build(actions: Page, options: Options, words: str) -> gradio.Blocks:
    """The layout and its wiring."""
    import gradio as gr

    cuts = actions.cuts_object  # needs no words, and an outline
    picks = [] if options.photos is None else [str(p) for p in list_images(options.photos)[0]]
    with gr.Blocks(title="partseg", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
        gr.Markdown("# Parts in your photo\nOpen-vocabulary part segmentation with your own words.", elem_id="title")
        chosen = gr.State(None)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                upload = gr.File(
                    label="Photo" if not picks else "Photo, or one of those below",
                    file_types=None,
                    type="filepath",
                    height=140,
                    elem_id="upload",
                )
                gallery = gr.Gallery(
                    picks,
                    show_label=False,
                    columns=6,
                    fit_columns=False,
                    height=110,
                    allow_preview=False,
                    buttons=[],
                    elem_id="picks",
                    visible=bool(picks),
                )
                photo = gr.HTML(elem_id="photo")
                text = gr.Textbox(
                    words,
                    label="Objects and their parts, an object per line",
                    lines=4,
                    max_lines=12,
                    visible=not cuts,
                    elem_id="words",
                )
                phrases = gr.Textbox(
                    "the dog's left ear\nfront wheel",
                    label="Phrases, one per line",
                    lines=4,
                    max_lines=12,
                    visible=False,
                    elem_id="phrases",
                )
                known = ("I know the object", ORACLE)
                ways = [known] if cuts else [("Find everything", EVERYTHING), known, ("A mask per phrase", PHRASES)]
                protocol = gr.Radio(ways, value=ways[0][1], label="What is known", elem_id="protocol")
                objects = actions.objects(words)
                given = objects[0] if cuts else None
                name = gr.Dropdown(objects, label="Object", visible=False, elem_id="object", value=given)
                marks = gr.Textbox(elem_id="marks", visible="hidden")
                button = gr.Button("Find parts", variant="primary", elem_id="go")
            with gr.Column(scale=7, min_width=300):
                result = gr.HTML('<div id="empty">The parts will be shown here.</div>', elem_id="result")
                status = gr.HTML(elem_id="status")
                opacity = gr.Slider(0, 100, 60, step=5, label="Opacity", elem_id="opacity")
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(label, interactive=False, size="sm", elem_id=f"download-{kind}")
                        for label, kind in (
                            ("Picture (PNG)", "picture"),
                            ("Label map (16-bit PNG)", "labels"),
                            ("Segments (JSON)", "json"),
                        )
                    ]

        def find(path: str | None, words: str, lines: str, how: str, which: str | None, drawn: str) -> list[Any]:
            html, state, files = actions.find_parts(path, lines if how == PHRASES else words, how, which, drawn)
            if files is None:  # the last result stays beside the message
                return [gr.skip(), state, *(gr.skip() for _ in downloads)]
            return [html, state, *(gr.DownloadButton(value=f, interactive=True) for f in files)]

        def pick(event: Any) -> str:
            return picks[event.index]

        pick.__annotations__["event"] = gr.SelectData  # gradio reads it; gradio is not imported when this file is

        def choose_protocol(how: str, words: str) -> list[Any]:
            names = actions.objects(words)
            object_name = gr.Dropdown(choices=names, value=names[0] if names else None, visible=how == ORACLE)
            return [object_name, gr.Textbox(visible=how != PHRASES), gr.Textbox(visible=how == PHRASES)]

        def update_words(words: str, which: str | None) -> Any:
            names = actions.objects(words)
            return gr.Dropdown(choices=names, value=which if which in names else (names[0] if names else None))

        upload.change(lambda path: path, upload, chosen)
        gallery.select(pick, None, chosen)
        chosen.change(actions.show_photo, [chosen, protocol], [photo, status])
        protocol.change(choose_protocol, [protocol, text], [name, text, phrases])
        protocol.change(None, protocol, None, js=ACTIVATE)
        text.change(update_words, [text, name], name)
        asked = [chosen, text, phrases, protocol, name, marks]
        found = button.click(find, asked, [result, status, *downloads], trigger_mode="always_last")
        found.then(None, None, None, js=TO_RESULT)
        opacity.change(None, opacity, None, js=FADE)
    return blocks


ACTIVATE = (
    "(how) => document.querySelectorAll('.partseg-marker')"
    f".forEach(m => m.classList.toggle('active', how === '{ORACLE}'))"
)
TO_RESULT = """() => innerWidth < 760 &&
    (document.querySelector("#status .bad") || document.querySelector("#result")).scrollIntoView()"""
FADE = "(v) => { document.documentElement.style.setProperty('--partseg-opacity', v / 100); }"


class StayHome:
    """ASGI middleware that sends POLICY with every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def main(options: Options) -> int:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = scratch_folder("partseg-demo")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # what lies here is served in place, and deleted as delete_cache says
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ImportError:
        raise ImportError("the page needs gradio: pip install gradio") from None
    words = WORDS if options.vocabulary is None else text_of_vocabulary(as_vocabulary(options.vocabulary))
    segmenter = api.load(options.ckpt, options.device, plugins=options.plugins)
    words = NO_WORDS if segmenter.input.needs_object else words
    max_pixels = int(options.max_megapixels * 1e6)
    actions = Page(segmenter, max_pixels=max_pixels, max_parts=options.max_parts, folder=folder)
    head = f"<script>{page.viewer_script()}</script><script>{page.marker_script()}</script>"
    font = ("system-ui", "Segoe UI", "DejaVu Sans", "sans-serif")
    build(actions, options, words).queue(default_concurrency_limit=1, max_size=32).launch(
        server_name=options.host,
        server_port=options.port,
        share=False,
        max_file_size=f"{options.max_upload_mb}mb",
        allowed_paths=[] if options.photos is None else [str(options.photos.resolve())],
        theme=gr.themes.Soft(primary_hue="indigo", font=font, font_mono=("monospace",)),
        css=page.viewer_style() + page.marker_style() + page.demo_style(),
        head=head,
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(StayHome)]},
    )
    return 0


def command() -> int:
    """The command line."""
    return arguments.run(main, Options, __doc__)
