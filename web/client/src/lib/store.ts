import { useEffect, useState } from "preact/hooks";

/**
 * A value that can be watched. Setting it to the same value tells nobody.
 * Listeners are called in the order in which they came.
 */
export class Store<T> {
  private listeners = new Set<(value: T) => void>();

  constructor(private current: T) {}

  get value(): T {
    return this.current;
  }

  set(value: T): void {
    if (Object.is(value, this.current)) return;
    this.current = value;
    for (const listener of [...this.listeners]) listener(value);
  }

  /** patch sets some fields of an object value. */
  patch(part: Partial<T>): void {
    this.set({ ...this.current, ...part });
  }

  subscribe(listener: (value: T) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

/** useStore renders again whenever the store's value changes. */
export function useStore<T>(store: Store<T>): T {
  const [value, setValue] = useState(store.value);
  useEffect(() => {
    setValue(() => store.value);
    return store.subscribe((v) => setValue(() => v));
  }, [store]);
  return value;
}

/** coalesce returns a function that runs `work` once per turn however often it is called. */
export function coalesce(work: () => void, delayMs = 30): () => void {
  let pending = false;
  return () => {
    if (pending) return;
    pending = true;
    setTimeout(() => {
      pending = false;
      work();
    }, delayMs);
  };
}
