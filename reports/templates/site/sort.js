// A click on a heading sorts the rows by its column; a second one turns them round. Cells without a number stay last.
for (const table of document.querySelectorAll("table.board")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    button.addEventListener("click", () => {
      const opposite = {ascending: "descending", descending: "ascending"};
      const order = opposite[heading.getAttribute("aria-sort")] || button.dataset.first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        if (column === 0) return sign * x.textContent.localeCompare(y.textContent);
        if (!x.dataset.value || !y.dataset.value) return !x.dataset.value - !y.dataset.value;
        return sign * (x.dataset.value - y.dataset.value);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
