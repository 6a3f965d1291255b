/** Finding and making elements. */

/** The element of the page with this id. */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`no ${type.name} with the id ${id}`);
  return element;
}

/** A new element. */
export function create<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Readonly<Record<string, string>> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Something to read in large figures: what it is, and how much. */
export type Figure = readonly [name: string, value: string];

/** Puts figures into a `dl`. */
export function showFigures(list: HTMLElement, figures: readonly Figure[]): void {
  const items = figures.map(([name, value]) =>
    create("div", {}, create("dt", {}, name), create("dd", {}, value)),
  );
  list.replaceChildren(...items);
}

/** Fills a select with options of values 0, 1, … and keeps its choice where there still is one. */
export function fillSelect(select: HTMLSelectElement, names: readonly string[]): void {
  const index = Math.max(0, Math.min(select.selectedIndex, names.length - 1));
  select.replaceChildren(...names.map((name, i) => create("option", { value: String(i) }, name)));
  select.selectedIndex = index;
}
