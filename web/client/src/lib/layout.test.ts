import { describe, expect, it } from "vitest";
import { fitGrid } from "./layout.ts";

describe("fitGrid", () => {
  it("gives one person the whole width", () => {
    expect(fitGrid(1, 1280, 800, 8)).toEqual({ columns: 1, rows: 1, width: 1280, height: 720 });
  });

  it("puts two beside each other on a wide screen", () => {
    const g = fitGrid(2, 1280, 640, 8);
    expect([g.columns, g.rows]).toEqual([2, 1]);
  });

  it("puts two above each other on a phone and lets them grow tall", () => {
    const g = fitGrid(2, 374, 640, 8, 16 / 9, 1);
    expect([g.columns, g.rows]).toEqual([1, 2]);
    expect(g.height).toBeGreaterThan((374 * 9) / 16);
  });

  it("never leaves the area and always has room for all", () => {
    for (let n = 1; n <= 30; n++) {
      for (const [w, h] of [[320, 500], [390, 640], [844, 300], [1280, 700], [2560, 1300]] as const) {
        const g = fitGrid(n, w, h, 8, 16 / 9, w < h ? 1 : 16 / 9);
        expect(g.columns * g.rows).toBeGreaterThanOrEqual(n);
        expect(g.columns * g.width + (g.columns - 1) * 8).toBeLessThanOrEqual(w);
        expect(g.rows * g.height + (g.rows - 1) * 8).toBeLessThanOrEqual(h);
        expect(g.width).toBeGreaterThan(20);
      }
    }
  });

  it("survives an area of nothing", () => {
    expect(fitGrid(3, 0, 0, 8).width).toBe(0);
    expect(fitGrid(0, 100, 100, 8).rows).toBeGreaterThanOrEqual(0);
  });
});
