-- In the database of POSTGRES_DB, when the data folder is made.
create extension shapefeed;
