/** The strip: thumbnails of every branch as the clip grows, its prompts, bookmarks, and going on from any block. */

import { clock, icon, make } from "./dom.js";
import { blockStart, blocksPerThumbnail, ordered, promptSpans, thumbnailFrames } from "./strip_layout.js";

const WIDTH = 56; // pixels of a thumbnail
const MOST_TRIES = 3; // to get a thumbnail
const FOLLOW_MS = 4000; // the strip follows the playhead again so long after it was scrolled

class Row {
  constructor(strip, id) {
    this.strip = strip;
    this.id = id;
    this.thumbnails = new Map(); // by frame
    this.failures = new Map(); // of a frame's thumbnail
    this.cursor = 0;
    this.go = make("button", { type: "button", class: "branch-go", onclick: () => strip.act("goto", { branch: id }) });
    this.pictures = make("div", { class: "thumbnails" });
    this.prompts = make("div", { class: "spans" });
    this.mark = make("div", { class: "cursor", hidden: true }, make("span", {}));
    this.playhead = make("div", { class: "playhead", hidden: true });
    this.track = make(
      "div",
      {
        class: "track",
        role: "slider",
        tabindex: 0,
        "aria-valuemin": 0,
        onpointermove: (event) => this.point(this.frameAt(event)),
        onpointerleave: () => (this.mark.hidden = true),
        onclick: (event) => strip.goFrom(this, this.frameAt(event), event.shiftKey),
        onkeydown: (event) => this.key(event),
        onfocus: () => this.point(Math.min(this.cursor || this.branch.frames, this.branch.frames - 1)),
        onblur: () => (this.mark.hidden = true),
      },
      this.pictures,
      this.prompts,
      this.playhead,
      this.mark,
    );
    this.flags = make("div", { class: "flags" });
    this.element = make(
      "div",
      { class: "strip-row" },
      make("div", { class: "branch-name" }, this.go),
      make("div", { class: "row-body" }, this.track, this.flags),
    );
  }

  frameAt(event) {
    const { left, width } = this.track.getBoundingClientRect();
    const zoom = width / this.track.offsetWidth; // of a canvas that the view lies on
    return ((event.clientX - left) / zoom / WIDTH) * this.strip.step;
  }

  x(frame) {
    return `${(frame / this.strip.step) * WIDTH}px`;
  }

  point(frame) {
    const { framesPerBlock, text, fps } = this.strip;
    this.cursor = Math.max(
      this.branch.fork_frame ?? 0,
      blockStart(Math.min(frame, this.branch.frames - 1), framesPerBlock),
    );
    const time = clock(this.cursor / fps);
    this.mark.hidden = false;
    this.mark.style.left = this.x(this.cursor);
    this.mark.firstChild.textContent = text.t("here", { time });
    this.mark.dataset.side = this.cursor / this.branch.frames > 0.5 ? "left" : "right";
    this.describe();
  }

  describe() {
    const { fps, text } = this.strip;
    const prompt = promptSpans(this.branch).findLast(({ frame }) => frame <= this.cursor)?.text ?? "";
    this.track.setAttribute("aria-valuemax", this.branch.frames);
    this.track.setAttribute("aria-valuenow", this.cursor);
    this.track.setAttribute("aria-valuetext", text.t("position", { time: clock(this.cursor / fps), prompt }));
  }

  key(event) {
    const { framesPerBlock } = this.strip;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -8, PageDown: 8, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") this.strip.goFrom(this, this.cursor, event.shiftKey);
    else if (event.key in moves) this.point(Math.max(0, this.cursor + moves[event.key] * framesPerBlock));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  draw(branch, depth, current) {
    this.branch = branch;
    const { strip } = this;
    const { text, step } = strip;
    this.element.dataset.current = String(current);
    this.element.style.setProperty("--depth", depth);
    this.go.textContent = String(branch.id);
    this.go.setAttribute("aria-label", text.t("branchGo", { id: branch.id }));
    this.go.title = text.t("branchGo", { id: branch.id });
    this.go.setAttribute("aria-current", String(current));
    this.track.setAttribute("aria-label", text.t("branch", { id: branch.id }));
    this.track.style.width = this.x(branch.frames);
    // The server may still be writing the picture of the newest block.
    const ready = current && strip.state.status === "playing" ? branch.frames - strip.framesPerBlock : branch.frames;
    const wanted = new Set(thumbnailFrames(branch, step).filter((frame) => frame < ready));
    for (const [frame, image] of this.thumbnails)
      if (!wanted.has(frame)) {
        image.remove();
        this.thumbnails.delete(frame);
      }
    for (const frame of wanted) if (!this.thumbnails.has(frame)) this.picture(frame);
    this.drawPrompts();
    this.drawFlags();
    this.describe();
  }

  picture(frame) {
    const { connection } = this.strip;
    // `v` names the making: after a rewind another picture has the same branch and frame.
    const src = connection.file("thumbnail", { branch: this.id, frame, v: this.strip.version });
    const failed = () => {
      const tries = (this.failures.get(frame) ?? 0) + 1;
      this.failures.set(frame, tries);
      image.remove();
      if (tries < MOST_TRIES) this.thumbnails.delete(frame); // asked for again when the next state comes
    };
    const image = make("img", { src, alt: "", draggable: "false", onerror: failed });
    image.style.left = this.x(frame);
    this.thumbnails.set(frame, image);
    this.pictures.append(image);
  }

  drawPrompts() {
    const spans = promptSpans(this.branch);
    const drawn = JSON.stringify([spans, this.strip.step]);
    if (drawn === this.drawnPrompts) return;
    this.drawnPrompts = drawn;
    this.prompts.replaceChildren(
      ...spans.map(({ frame, end, text }, i) => {
        const span = make("span", { class: "span", "data-odd": String(i % 2), title: text }, text);
        [span.style.left, span.style.width] = [this.x(frame), this.x(end - frame)];
        return span;
      }),
    );
  }

  drawFlags() {
    const { strip } = this;
    const marks = strip.state.bookmarks.filter(({ branch }) => branch === this.id);
    const drawn = JSON.stringify([marks, strip.step, strip.text.language, strip.enabled]);
    if (drawn === this.drawnFlags) return;
    this.drawnFlags = drawn;
    this.flags.replaceChildren(
      ...marks.map(({ id, name, frame }) => {
        const label = strip.text.t("bookmarkGo", { name });
        const flag = make(
          "button",
          {
            type: "button",
            class: "flag",
            title: label,
            "aria-label": label,
            disabled: !strip.enabled,
            onclick: () => strip.act("goto", { bookmark: id }),
          },
          icon("bookmark"),
        );
        flag.style.left = this.x(frame);
        return flag;
      }),
    );
  }
}

export class Strip {
  /** `act(control, fields)` sends a control. */
  constructor(container, connection, text, { act }) {
    this.connection = connection;
    this.text = text;
    this.act = act;
    this.rows = new Map();
    this.enabled = true;
    this.step = 12;
    this.version = 0;
    this.mode = "rewind";
    this.scrolledAt = -Infinity;
    this.modes = ["rewind", "fork"].map((mode) =>
      text.say(
        text.say(make("button", { type: "button", onclick: () => this.setMode(mode) }), mode),
        `${mode}Hint`,
        "title",
      ),
    );
    this.empty = text.say(make("p", { class: "hint" }), "stripEmpty");
    this.body = make("div", {
      class: "strip-rows",
      onpointerdown: () => this.scrolled(),
      onwheel: () => this.scrolled(),
    });
    this.head = make("div", { class: "downloads" }); // for what belongs to the clip as a whole
    this.element = make(
      "section",
      { class: "strip" },
      make(
        "div",
        { class: "strip-head" },
        text.say(make("h2"), "strip"),
        this.head,
        make("span", { class: "grow" }),
        text.say(make("span", { class: "hint" }), "click"),
        text.say(make("div", { class: "segments", role: "group" }, ...this.modes), "click", "aria-label"),
      ),
      this.empty,
      this.body,
    );
    text.say(this.element, "strip", "aria-label");
    container.append(this.element);
    this.setMode("rewind");
    this.end = connection.on("state", () => this.draw());
    text.listeners.push(() => this.draw());
    this.draw();
  }

  destroy() {
    this.end();
    this.element.remove();
  }

  setMode(mode) {
    this.mode = mode;
    this.modes.forEach((button, i) => button.setAttribute("aria-pressed", String(["rewind", "fork"][i] === mode)));
  }

  scrolled() {
    this.scrolledAt = performance.now();
  }

  enable(enabled) {
    this.enabled = enabled;
    for (const button of this.modes) button.disabled = !enabled;
    for (const row of this.rows.values()) row.go.disabled = !enabled;
    this.draw();
  }

  draw() {
    const { state, welcome } = this.connection;
    if (!state || !welcome) return;
    this.state = state;
    this.framesPerBlock = welcome.frames_per_block;
    this.fps = welcome.fps;
    const rows = ordered(state.branches.filter(({ frames }) => frames > 0));
    const longest = Math.max(0, ...rows.map(({ branch }) => branch.frames));
    const step = blocksPerThumbnail(longest, this.framesPerBlock) * this.framesPerBlock;
    const shorter = rows.some(({ branch }) => branch.frames < (this.rows.get(branch.id)?.branch.frames ?? 0));
    if (shorter) this.version += 1; // a rewind: what is made from now on has new pictures
    if (step !== this.step) for (const row of this.rows.values()) this.forget(row);
    this.step = step;
    this.empty.hidden = rows.length > 0;
    for (const [id, row] of this.rows) if (!rows.some(({ branch }) => branch.id === id)) this.forget(row);
    rows.forEach(({ branch, depth }, i) => {
      let row = this.rows.get(branch.id);
      if (!row) {
        row = new Row(this, branch.id);
        row.go.disabled = !this.enabled;
        this.rows.set(branch.id, row);
      }
      if (this.body.children[i] !== row.element) this.body.insertBefore(row.element, this.body.children[i] ?? null);
      row.draw(branch, depth, branch.id === state.branch);
    });
    this.body.dataset.rows = String(rows.length);
  }

  forget(row) {
    row.element.remove();
    this.rows.delete(row.id);
  }

  /** The player shows this frame. */
  play({ branch, frame }) {
    for (const [id, row] of this.rows) {
      row.playhead.hidden = id !== branch;
      if (id !== branch) continue;
      row.playhead.style.left = row.x(Math.min(frame, row.branch.frames));
      if (performance.now() - this.scrolledAt > FOLLOW_MS) {
        const x = (frame / this.step) * WIDTH,
          { scrollLeft, clientWidth } = this.body;
        if (x < scrollLeft || x > scrollLeft + clientWidth - 2 * WIDTH)
          this.body.scrollLeft = Math.max(0, x - clientWidth * 0.6);
      }
    }
  }

  goFrom(row, frame, other) {
    if (!this.enabled) return;
    const start = blockStart(Math.min(frame, row.branch.frames - 1), this.framesPerBlock);
    const seconds = Math.max(row.branch.fork_frame ?? 0, start) / this.fps;
    const mode = other ? { rewind: "fork", fork: "rewind" }[this.mode] : this.mode;
    if (row.id === this.state.branch) this.act(mode, { seconds });
    else if (mode === "rewind") this.act("goto", { branch: row.id, seconds });
    else if (this.act("goto", { branch: row.id })) this.act("fork", { seconds });
  }
}
