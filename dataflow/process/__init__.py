"""What any process of Redflag needs: how it was started, how it logs and ends, what it watches."""
