for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sorted = header.getAttribute("aria-sort");
      const ascending = sorted ? sorted !== "ascending" : header.dataset.better !== "higher";
      const value = (row) => row.cells[column].dataset.value ?? "";
      const compare = (a, b) => isNaN(a - b) ? a.localeCompare(b) : a - b;
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        return !a - !b || (ascending ? 1 : -1) * compare(a, b);
      });
      table.tBodies[0].append(...rows);
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    });
  });
}
