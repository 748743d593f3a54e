/** The choices of our nodes' lists in the user's language. The values, and with them saved graphs, stay as they are. */

/** A node that was just made. labels: a text for each choice that has one, from "saltChoices" in locales/LANGUAGE/main.json. */
export function labelChoices(node, labels) {
  for (const widget of node.widgets ?? []) {
    const values = widget.type === "combo" ? widget.options?.values : undefined;
    if (!Array.isArray(values) || widget.name === "control_after_generate" || !values.some((value) => labels[value])) continue;
    widget.options.getOptionLabel = (value) => labels[value] ?? value ?? "";
  }
}
