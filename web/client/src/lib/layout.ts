/** A grid of equal tiles, in CSS pixels. */
export interface Grid {
  columns: number;
  rows: number;
  width: number;
  height: number;
}

/**
 * fitGrid finds the grid in which `count` equal tiles cover the most of a
 * `width` by `height` area. Tiles are `ratio` wide for each unit of height;
 * where that leaves space unused they may grow taller, but not beyond
 * `minRatio` (a phone held upright would otherwise be mostly empty).
 */
export function fitGrid(
  count: number,
  width: number,
  height: number,
  gap: number,
  ratio = 16 / 9,
  minRatio = ratio,
): Grid {
  let best: Grid = { columns: 1, rows: Math.max(1, count), width: 0, height: 0 };
  for (let columns = 1; columns <= Math.max(1, count); columns++) {
    const rows = Math.ceil(count / columns);
    const maxW = (width - gap * (columns - 1)) / columns;
    const maxH = (height - gap * (rows - 1)) / rows;
    if (maxW <= 0 || maxH <= 0) continue;
    let w = Math.min(maxW, maxH * ratio);
    let h = Math.min(maxH, w / minRatio);
    if (w / h > ratio) h = w / ratio;
    w = Math.floor(w);
    h = Math.floor(h);
    if (w * h > best.width * best.height) best = { columns, rows, width: w, height: h };
  }
  return best;
}
