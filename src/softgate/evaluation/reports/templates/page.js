"use strict";
// Tables that sort and pictures that enlarge. Without this script a page shows the same, and does neither.

const NUMBER = /^[<±]?\s*([+\-−]?(?:\d[\d,]*)?\.?\d+(?:e[+-]?\d+)?)(?=$|[\s%×])/i;

// What a cell is sorted by: a number where its text begins with one, and nothing where there is a dash.
function valueOf(cell) {
  const text = cell.textContent.trim();
  const found = NUMBER.exec(text);
  const number = found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : NaN;
  return { text, number, empty: text === "" || text === "–" };
}

function compare(a, b, sign) {
  if (a.empty !== b.empty) return a.empty ? 1 : -1;
  const numbers = [a, b].map((one) => Number.isNaN(one.number));
  if (numbers[0] !== numbers[1]) return numbers[0] ? 1 : -1;
  if (!numbers[0] && a.number !== b.number) return sign * (a.number - b.number);
  return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
}

function sort(head) {
  const heads = [...head.parentElement.children];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const place = heads.indexOf(head);
  const body = head.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [row, valueOf(row.cells[place])]);
  rows.sort((a, b) => compare(a[1], b[1], up ? 1 : -1));
  body.append(...rows.map(([row]) => row));
}

for (const head of document.querySelectorAll("thead th")) {
  if (head.closest("table").tBodies[0].rows.length < 2) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "sort";
  button.title = "sort by this column";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

const dialog = document.createElement("dialog");
const close = document.createElement("button");
const large = document.createElement("img");
const words = document.createElement("p");
close.type = "button";
close.textContent = "Close";
close.className = "close";
dialog.setAttribute("aria-label", "picture, enlarged");
dialog.append(close, large, words);
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => large.removeAttribute("src"));

const pictures = document.querySelectorAll("figure img");
if (pictures.length) document.body.append(dialog);
for (const picture of pictures) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.title = "enlarge";
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => {
    large.src = picture.src;
    large.alt = words.textContent = picture.alt;
    large.className = picture.src.startsWith("data:image/svg") ? "drawn" : "";
    dialog.showModal();
    dialog.scrollTo(0, 0);
  });
}
