"""The page of `test.py --page`: it reads the letters that a hand shows to a camera, and spells.

Gradio makes the page. It listens on this machine alone, and keeps pictures with --record only.
"""

import os
import signal
import tempfile
import time

import cv2
import numpy as np

from asl_data.find_hand import DETECTOR, cut_out, find_hand, middle_square
from asl_data.find_images import UserError
from preprocess import IMAGE_SIZE, resize

WINDOW = 0.7  # seconds: the page shows the mean of the frames of this time
HOLD = 1.0  # seconds that a letter must stay to be spelled
SURE = 0.5  # a letter of a lower mean probability is not spelled

CSS = """
#camera, #camera .image-container, #square {height: 66vh}
#camera video {width: 100%; height: 100%; object-fit: contain}
#camera video, #square svg {transform: scaleX(-1)} /* a mirror; what is read is not mirrored */
#stage {position: relative}
#square {position: absolute; width: 100%; pointer-events: none; z-index: 1}
#square svg {position: absolute; top: 0; left: 0; width: 100%; height: 100%}
#letter {min-height: 66vh}
#letter h2 {font-size: min(30vh, 40vw); line-height: 1}
#text textarea {font-size: 2rem; letter-spacing: 0.2em}
@media (max-width: 700px) {
    #camera, #camera .image-container, #square {height: 45vh}
    #letter {min-height: 42vh}
    #letter h2 {font-size: 20vh}
}
"""
BEGIN = """() => {  // press the camera's two buttons, one after the other
    const buttons = ['[title="grant webcam access"] button',
                     'button:has([title="start recording"])']
    const timer = setInterval(() => {
        const button = document.querySelector('#camera ' + buttons[0])
        if (button) { button.click(); buttons.shift() }
        if (!buttons.length) clearInterval(timer)
    }, 300)
    const box = document.querySelector('#holding input')  // ticked while the button is held
    const hold = (on) => { if (box && box.checked != on) box.click() }
    document.querySelector('#record')?.addEventListener('pointerdown', () => hold(true))
    for (const up of ['pointerup', 'pointercancel', 'blur']) addEventListener(up, () => hold(false))
}"""


class Speller:
    """What one visitor's camera has shown.

    text: what is spelled. A letter that stays for HOLD seconds is added once; again after the hand
    was away, was moved by half of its square, or showed another letter.
    """

    def __init__(self):
        self.text = ""
        self.frames = []  # (time, probabilities) of the last WINDOW seconds
        self.letter, self.since = None, 0  # the letter now, and when it came
        self.added = None  # the square where it was added

    def see(self, now, square, probabilities):
        """Add a frame, and perhaps a letter to the text. Return the mean {letter: probability} of
        the last WINDOW seconds, None if they show no hand.

        now: seconds; square: (left, top, side), None without a hand;
        probabilities: {letter: float}, None without a hand.
        """
        if square:
            self.frames.append((now, probabilities))
        self.frames = [frame for frame in self.frames if now - frame[0] < WINDOW]
        if not self.frames:
            self.letter = None
            return None
        seen = [frame[1] for frame in self.frames]
        mean = {letter: sum(each[letter] for each in seen) / len(seen) for letter in seen[0]}
        letter = max(mean, key=mean.get)
        if mean[letter] < SURE:
            self.since = now  # HOLD begins again
        elif letter != self.letter or (square and self.added and far(square, self.added)):
            self.letter, self.since, self.added = letter, now, None
        elif square and not self.added and now - self.since >= HOLD:
            self.added = square
            self.write(letter)
        return mean

    def write(self, letter):
        """Add a letter; classes of Kaggle's data set are keys: space, del, nothing."""
        if letter == "del":
            self.text = self.text[:-1]
        elif letter != "nothing":
            self.text += " " if letter == "space" else letter
        return self.text

    def clear(self):
        self.text = ""
        return self.text


def far(square, other):
    """Whether two squares, (left, top, side), are more than half a side apart."""
    middles = [np.add(each[:2], each[2] / 2) for each in (square, other)]
    return np.linalg.norm(middles[0] - middles[1]) > other[2] / 2


def draw_square(picture, square):
    """SVG of the square, to lie over the camera's picture."""
    height, width, _ = picture.shape
    left, top, side = square
    return (
        f'<svg viewBox="0 0 {width} {height}"><rect x="{left}" y="{top}" width="{side}" '
        f'height="{side}" fill="none" stroke="lime" stroke-width="{width / 150:.0f}"/></svg>'
    )


def record(folder, label, picture):
    """Write a picture as A/1.jpg, A/2.jpg ...; return how many there are, as a text."""
    folder = folder / label  # a file name does not hold every class: hand1_1.jpg is of "hand"
    folder.mkdir(parents=True, exist_ok=True)
    count = number = 1 + len(list(folder.glob("*.jpg")))
    while (path := folder / f"{number}.jpg").exists():
        number += 1
    if len(picture) < IMAGE_SIZE:
        picture = resize(picture)
    cv2.imwrite(str(path), picture)
    return f"{label}: {count} pictures"


def show_page(read, classes, port, folder=None):
    """Show the page until Ctrl-C.

    read: a function that gives the {letter: probability} of a square picture, uint8 (side, side,
    3), BGR; classes: the letters that it knows; folder: of the pictures that are recorded.
    """
    try:
        import gradio
    except ModuleNotFoundError:
        raise UserError("--page needs Gradio: pip install gradio==6.31.0") from None
    # `kill`, or a closed terminal, then ends the `with` below as Ctrl-C does.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="asl-page-") as temporary:
        os.environ |= {"GRADIO_TEMP_DIR": temporary, "GRADIO_ANALYTICS_ENABLED": "False"}
        page = make_page(gradio, read, classes, folder)
        how = {"footer_links": [], "css": CSS, "quiet": True, "prevent_thread_lock": True}
        try:
            page.launch(server_name="127.0.0.1", server_port=port, share=False, **how)
        except OSError:
            raise UserError(f"port {port} is in use: give another by --page PORT") from None
        print(f"open http://127.0.0.1:{port}; Ctrl-C ends the page")
        page.block_thread()


def make_page(gradio, read, classes, folder):
    """The page: `watch` answers each frame of the camera, `read_photograph` a photograph."""

    def look(picture):
        """(picture, BGR; square of the hand, None without one; the part of the picture to read)

        Without a hand, that part is the middle: the detector misses close-ups and fists.
        """
        picture = np.ascontiguousarray(picture[:, :, ::-1])
        middle = middle_square(picture)
        square = find_hand(picture) if DETECTOR.exists() else middle
        return picture, square, cut_out(picture, square or middle)

    def watch(picture, speller, label, holding, whole):
        """What the page shows of a frame: square, letter, text, number of pictures recorded."""
        if picture is None:
            return "", None, speller.text, gradio.skip()
        picture, square, hand = look(picture)
        probabilities = read(hand) if square else None
        if holding:  # record, and do not spell
            mean = probabilities
            recorded = record(folder, label, picture if whole else hand)
        else:
            mean = speller.see(time.monotonic(), square, probabilities)
            recorded = gradio.skip()
        return draw_square(picture, square) if square else "", mean or "–", speller.text, recorded

    def read_photograph(picture):
        if picture is None:
            return None, None
        _, _, hand = look(picture)
        return resize(hand)[:, :, ::-1], read(hand)

    # delete_cache: each minute, delete the files that are older than a minute.
    with gradio.Blocks(title="ASL letters", delete_cache=(60, 60), fill_width=True) as page:
        speller = gradio.State(Speller())  # each visitor gets a copy
        if not DETECTOR.exists():
            gradio.Markdown(
                "The middle square is read. To find the hand: `python asl_data/find_hand.py`"
            )
        with gradio.Tab("camera"):
            with gradio.Row():
                with gradio.Column(scale=2, elem_id="stage"):
                    camera = gradio.Image(
                        sources="webcam",
                        streaming=True,
                        show_label=False,
                        elem_id="camera",
                        webcam_options=gradio.WebcamOptions(mirror=False),
                    )
                    square = gradio.HTML(elem_id="square")
                with gradio.Column(scale=1):
                    answers = gradio.Label(num_top_classes=3, show_label=False, elem_id="letter")
            with gradio.Row():
                text = gradio.Textbox(
                    label=f"hold a letter for {HOLD:g} second: {' '.join(classes)}",
                    interactive=False,
                    elem_id="text",
                    scale=4,
                )
                space, backspace, clear = (
                    gradio.Button(name, min_width=80) for name in ("space", "backspace", "clear")
                )
            with gradio.Row(visible=bool(folder)):
                label = gradio.Radio(classes, value=classes[0], label="record", scale=3)
                whole = gradio.Checkbox(label="whole pictures, for --find-hand")
                recorded = gradio.Textbox(show_label=False, interactive=False)
                gradio.Button("hold to record", elem_id="record", variant="primary")
                holding = gradio.Checkbox(visible="hidden", elem_id="holding")
        with gradio.Tab("photograph"):
            with gradio.Row():
                photograph = gradio.Image(sources=["upload", "clipboard"], label="a photograph")
                with gradio.Column():
                    answer = gradio.Label(num_top_classes=3, show_label=False)
                    seen = gradio.Image(label="what the network sees", height=224, buttons=[])
        camera.stream(
            watch,
            [camera, speller, label, holding, whole],
            [square, answers, text, recorded],
            show_progress="hidden",
            stream_every=0.1,
            concurrency_limit=None,  # several visitors
        )
        space.click(lambda speller: speller.write("space"), speller, text)
        backspace.click(lambda speller: speller.write("del"), speller, text)
        clear.click(Speller.clear, speller, text)
        photograph.change(read_photograph, photograph, [seen, answer], show_progress="hidden")
        page.load(None, js=BEGIN)
    return page
