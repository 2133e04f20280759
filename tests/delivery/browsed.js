// What a reader would complain about on a page: an empty list for a good one.
({ print }) => {
  const found = new Set();
  const complain = (element, what) =>
    found.add(`${what}: <${element.tagName.toLowerCase()} ${element.className.baseVal ?? element.className}> ${element.textContent.trim().slice(0, 60)}`);
  const shown = (element) => element.checkVisibility({ contentVisibilityAuto: true }) && !element.closest("details caption");
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  // Of luminances, so it is what is left in grey.
  const contrast = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const scroller = (element) => {
    for (let each = element; each; each = each.parentElement)
      if (/auto|scroll/.test(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth + 1) return each;
    return null;
  };
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide + 1)
    found.add(`leaves the page: it is ${document.documentElement.scrollWidth} wide of ${wide}`);

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !shown(element) || element.tagName === "title") continue;
    const style = getComputedStyle(element);
    const svg = element.closest("svg");
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = svg ? element.getBoundingClientRect() : range.getBoundingClientRect();
    const around = svg ? svg.getBoundingClientRect() : { left: 0, right: wide };
    if ((svg || !scroller(element)) && (box.left < around.left - 1 || box.right > around.right + 1))
      complain(element, "leaves the page");
    if (svg && (box.top < around.top - 1 || box.bottom > around.bottom + 1)) complain(element, "is cut off");
    for (let each = element; each; each = each.parentElement)
      if (getComputedStyle(each).overflowX === "hidden" && each.scrollWidth > each.clientWidth + 1) complain(element, "is cut off");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(style.fontSize) * scale < (print ? 8 : 10.5)) complain(element, "too small");
    if (contrast(svg ? style.fill : style.color, behind(element)) < 4.5) complain(element, "contrast of text");
    const cell = element.closest("td, th");
    if (cell && !element.closest("code")) {
      // A digest may be broken, and the name of a row that stays while the others move.
      const line = cell.matches(".wide tbody th") ? 96 : Math.min(400, 0.8 * document.querySelector("main").clientWidth);
      for (const word of node.data.matchAll(/[^\s\-–—/<>()"|]+/g)) {
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const boxes = [...range.getClientRects()].filter((each) => each.width > 0);
        const needed = boxes.reduce((sum, each) => sum + each.width, 0);
        if (new Set(boxes.map((each) => Math.round(each.top))).size > 1 && needed < line) complain(element, `"${word[0]}" is broken`);
      }
    }
  }
  for (const cell of document.querySelectorAll("td, th"))
    if (shown(cell) && !cell.matches(".lane") && cell.scrollWidth > cell.clientWidth + 2) complain(cell, "narrower than its text");

  const paint = { ".kept": "fill", ".removed": "fill", ".dense": "stroke", ".cross": "stroke", ".ring": "stroke", ".reached": "stroke", ".mean": "stroke", "path[stroke]": "stroke", "path[fill]:not([fill=none])": "fill" };
  for (const [selector, property] of Object.entries(paint))
    for (const shape of document.querySelectorAll(`svg ${selector}`))
      if (contrast(getComputedStyle(shape)[property], behind(shape)) < 3) complain(shape, `contrast of ${selector}`);
  for (const mark of document.querySelectorAll(".lane .dot, .lane .bar, .swatch:not(.dense-swatch)"))
    if (contrast(getComputedStyle(mark).backgroundColor, behind(mark.parentElement)) < 3) complain(mark, "contrast of a mark");
  const [kept, removed] = [".kept", ".removed"].map((each) => document.querySelector(`svg ${each}`));
  if (kept && removed && contrast(getComputedStyle(kept).fill, getComputedStyle(removed).fill) < 3) complain(removed, "kept and removed look alike in grey");

  for (const area of document.querySelectorAll("body *")) {
    const moves = /auto|scroll/.test(getComputedStyle(area).overflowX) && area.scrollWidth > area.clientWidth + 1;
    if (moves && area.tabIndex !== 0) complain(area, "no focus");
    if (print && area.matches(".scroll") && area.scrollWidth > area.clientWidth + 1) complain(area, "is cut off");
    if (print && area.matches("details > *") && area.getBoundingClientRect().height === 0) complain(area, "is not printed");
  }
  return [...found];
}
